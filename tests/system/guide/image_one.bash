curl -X POST "http://localhost:8081/user/ai/tasks/submit" \
-H "Content-Type: application/json" \
-H "Authorization: Bearer YOUR_JWT_TOKEN" \
-d '{
"modelName": "sc_soraimg_img2img_1x1",
"prompt": "把这张照片转换成可爱的卡通Q版潮玩形象,保留原有特征,增加萌趣感",
"imageUrl": "https://oss-1818ai-user-img.oss-cn-hangzhou.aliyuncs.com/user123/photo.jpg"
}'
